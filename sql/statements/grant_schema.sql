-- Lists the statements that give a schema to the owner role and open it to one tenant's role only.
-- $1 the schema's name, $2 the owner role, $3 the tenant's role. Running the statements again does no harm.
--
-- The contents of the schema are found through pg_depend, which has an index for that; pg_class has none by schema.
-- Owners are found in pg_shdepend, which covers every kind of object. Objects of an extension keep their owner. Other
-- roles keep what an operator granted to them, for example for reports. PUBLIC and other tenants' roles do not.
WITH target AS (
    SELECT oid, nspname, nspowner, nspacl, pg_catalog.quote_ident(nspname) AS name
    FROM pg_catalog.pg_namespace WHERE nspname = $1::text
), names AS (
    SELECT pg_catalog.quote_ident($2::text) AS owner, pg_catalog.quote_ident($3::text) AS role
), contents AS (
    SELECT
        d.classid, d.objid,
        CASE
            WHEN d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass THEN 'ROUTINE'
            WHEN i.type = 'composite type' THEN 'TYPE'
            WHEN i.type = 'statistics object' THEN 'STATISTICS'
            ELSE pg_catalog.upper(i.type)
        END AS kind,
        i.identity
    FROM target
    JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = target.oid AND d.deptype = 'n'
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, 0) AS i
    WHERE d.classid IN (
        'pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass,
        'pg_catalog.pg_type'::pg_catalog.regclass, 'pg_catalog.pg_collation'::pg_catalog.regclass,
        'pg_catalog.pg_operator'::pg_catalog.regclass, 'pg_catalog.pg_opclass'::pg_catalog.regclass,
        'pg_catalog.pg_opfamily'::pg_catalog.regclass, 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass,
        'pg_catalog.pg_ts_config'::pg_catalog.regclass, 'pg_catalog.pg_ts_dict'::pg_catalog.regclass,
        'pg_catalog.pg_conversion'::pg_catalog.regclass
    )
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS e
        WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e'
    )
), acls AS (
    SELECT 'SCHEMA' AS kind, name AS identity, nspacl AS acl FROM target
    UNION ALL
    SELECT 'TABLE', o.identity, c.relacl
    FROM contents AS o JOIN pg_catalog.pg_class AS c
        ON o.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = o.objid AND c.relkind <> 'c'
    UNION ALL
    SELECT 'TABLE', o.identity, a.attacl
    FROM contents AS o JOIN pg_catalog.pg_attribute AS a
        ON o.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND a.attrelid = o.objid AND a.attacl IS NOT NULL
    UNION ALL
    SELECT 'ROUTINE', o.identity, coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
    FROM contents AS o JOIN pg_catalog.pg_proc AS p
        ON o.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = o.objid
), strangers AS (
    SELECT DISTINCT
        a.kind, a.identity, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END AS grantee
    FROM acls AS a CROSS JOIN LATERAL pg_catalog.aclexplode(a.acl) AS x
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = x.grantee
    WHERE x.grantee = 0
        OR r.rolname NOT IN ($2::text, $3::text)
            AND pg_catalog.starts_with(r.rolname::text, pg_catalog.left($2::text, -5))
), later_strangers AS (
    SELECT DISTINCT
        maker.rolname AS maker, d.defaclobjtype,
        CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END AS grantee
    FROM target
    JOIN pg_catalog.pg_default_acl AS d ON d.defaclnamespace = target.oid
    JOIN pg_catalog.pg_roles AS maker ON maker.oid = d.defaclrole
    CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) AS x
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = x.grantee
    WHERE x.grantee = 0
        OR r.rolname NOT IN ($2::text, $3::text)
            AND pg_catalog.starts_with(r.rolname::text, pg_catalog.left($2::text, -5))
), statements (step, number, statement) AS (
    SELECT 3, 0::oid, pg_catalog.format('ALTER SCHEMA %s OWNER TO %s', target.name, owner) FROM target CROSS JOIN names
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE oid = nspowner AND rolname = $2::text)
    UNION ALL
    SELECT 4, o.objid, pg_catalog.format('ALTER %s %s OWNER TO %s', o.kind, o.identity, owner)
    FROM contents AS o CROSS JOIN names
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_shdepend AS s JOIN pg_catalog.pg_roles AS r ON r.oid = s.refobjid
        WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
            AND s.classid = o.classid AND s.objid = o.objid AND s.objsubid = 0 AND s.deptype = 'o'
            AND r.rolname = $2::text
    )
    -- Of a column: it goes with its table.
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS c
        WHERE c.classid = o.classid AND c.objid = o.objid AND c.deptype IN ('a', 'i')
            AND c.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    )
    UNION ALL
    SELECT 5, 0, pg_catalog.format('REVOKE ALL ON %s %s FROM %s', kind, identity, grantee) FROM strangers
    UNION ALL
    SELECT 5, 1, pg_catalog.format(
        'ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %s REVOKE ALL ON %s FROM %s', s.maker, target.name,
        CASE s.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' ELSE 'TYPES' END,
        s.grantee
    )
    FROM later_strangers AS s CROSS JOIN target
    UNION ALL
    SELECT 6, 0, pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %s', target.name, role) FROM target CROSS JOIN names
    UNION ALL
    SELECT 7, 0, pg_catalog.format(
        'GRANT %s ON %s %s TO %s',
        CASE kind
            WHEN 'SEQUENCE' THEN 'USAGE, SELECT' WHEN 'ROUTINE' THEN 'EXECUTE' ELSE 'SELECT, INSERT, UPDATE, DELETE'
        END,
        CASE WHEN kind IN ('SEQUENCE', 'ROUTINE') THEN kind ELSE 'TABLE' END,
        pg_catalog.string_agg(identity, ', '), role
    )
    FROM contents CROSS JOIN names
    WHERE kind IN ('TABLE', 'VIEW', 'MATERIALIZED VIEW', 'FOREIGN TABLE', 'SEQUENCE', 'ROUTINE')
    GROUP BY kind, role
    UNION ALL
    -- For what the owner makes later.
    SELECT 8, 0, pg_catalog.format(
        'ALTER DEFAULT PRIVILEGES FOR ROLE %s IN SCHEMA %s GRANT %s TO %s', owner, target.name, granted, role
    )
    FROM target CROSS JOIN names CROSS JOIN (
        VALUES ('SELECT, INSERT, UPDATE, DELETE ON TABLES'), ('USAGE, SELECT ON SEQUENCES'), ('EXECUTE ON ROUTINES')
    ) AS later (granted)
)
SELECT statement FROM statements ORDER BY step, number, statement
