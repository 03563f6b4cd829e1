-- Lists the statements that give the tenants' roles the rights that they lack in the shared schemas.
-- $1 the shared schemas, $2 the owner role of the tenants' schemas, $3 the role of all who read the shared schemas.
-- The owner role runs the tenants' migrations, in which foreign keys refer to shared tables.
WITH shared AS (
    SELECT oid, pg_catalog.quote_ident(nspname) AS name, nspacl
    FROM pg_catalog.pg_namespace WHERE nspname = ANY ($1::text[])
), wanted (grantee, rights) AS (
    SELECT r.rolname::text, CASE r.rolname WHEN $2::text THEN 'SELECT, REFERENCES' ELSE 'SELECT' END
    FROM pg_catalog.pg_roles AS r WHERE r.rolname IN ($2::text, $3::text)
), tables AS (
    -- Whoever creates an extension says who may read its tables.
    SELECT c.oid, pg_catalog.format('%s.%I', s.name, c.relname) AS name, c.relkind IN ('r', 'p') AS has_keys
    FROM shared AS s JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS e
        WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.objid = c.oid AND e.deptype = 'e'
    )
), outsiders AS (
    SELECT pg_catalog.string_agg(pg_catalog.quote_ident(r.rolname), ', ' ORDER BY r.rolname) AS names
    FROM quart_tenants.tenants AS t
    JOIN pg_catalog.pg_roles AS r ON r.rolname = t.role_name
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m
        JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname = $3::text
        WHERE m.member = r.oid
    )
), statements (step, statement) AS (
    SELECT 0, pg_catalog.format('GRANT %I TO %s', $3::text, names) FROM outsiders WHERE names IS NOT NULL
    UNION ALL
    SELECT 1, pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %I', s.name, w.grantee)
    FROM shared AS s CROSS JOIN wanted AS w
    WHERE NOT pg_catalog.has_schema_privilege(w.grantee, s.oid, 'USAGE')
    UNION ALL
    SELECT 2, pg_catalog.format('GRANT %s ON TABLE %s TO %I', w.rights, t.name, w.grantee)
    FROM tables AS t CROSS JOIN wanted AS w
    WHERE NOT pg_catalog.has_table_privilege(w.grantee, t.oid, 'SELECT')
        OR w.grantee = $2::text AND t.has_keys AND NOT pg_catalog.has_table_privilege(w.grantee, t.oid, 'REFERENCES')
    UNION ALL
    -- For what this role makes later.
    SELECT 3, pg_catalog.format(
        'ALTER DEFAULT PRIVILEGES IN SCHEMA %s GRANT %s ON TABLES TO %I', s.name, w.rights, w.grantee
    )
    FROM shared AS s CROSS JOIN wanted AS w
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_default_acl AS d
        CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) AS x
        WHERE d.defaclnamespace = s.oid AND d.defaclobjtype = 'r'
            AND d.defaclrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
            AND x.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = w.grantee)
            AND x.privilege_type = CASE w.grantee WHEN $2::text THEN 'REFERENCES' ELSE 'SELECT' END
    )
)
SELECT statement FROM statements ORDER BY step, statement
