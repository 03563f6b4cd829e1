-- Lists the statements that take from PUBLIC what tenants' roles must not have.
-- $1 the owner role. PUBLIC has these rights in every new database. The role that has logged in and the owner role keep
-- them.
WITH names AS (
    SELECT pg_catalog.format('%I, %I', session_user, $1::text) AS keepers, session_user AS login
), functions (name) AS (
    -- The first leads out of the role and the path. The second shows what was sent with values in its text.
    VALUES ('pg_catalog.set_config(text, text, boolean)'), ('pg_catalog.pg_prepared_statement()')
), databases AS (
    SELECT pg_catalog.current_database() AS name
)
SELECT pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s', f.name, keepers) AS statement
FROM functions AS f CROSS JOIN names
WHERE pg_catalog.has_function_privilege('public', f.name, 'EXECUTE')
    OR NOT pg_catalog.has_function_privilege(login, f.name, 'EXECUTE')
    OR NOT pg_catalog.has_function_privilege($1::text, f.name, 'EXECUTE')
UNION ALL
SELECT pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f.name) FROM functions AS f
WHERE pg_catalog.has_function_privilege('public', f.name, 'EXECUTE')
UNION ALL
SELECT pg_catalog.format(s, keepers) FROM names CROSS JOIN (
    VALUES ('GRANT UPDATE ON pg_catalog.pg_settings TO %s'), ('REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC')
) AS settings (s)
WHERE pg_catalog.has_table_privilege('public', 'pg_catalog.pg_settings', 'UPDATE')
UNION ALL
SELECT pg_catalog.format(s, name, keepers) FROM databases CROSS JOIN names CROSS JOIN (
    VALUES ('GRANT TEMPORARY ON DATABASE %1$I TO %2$s'), ('REVOKE TEMPORARY, CREATE ON DATABASE %1$I FROM PUBLIC')
) AS statements (s)
WHERE pg_catalog.has_database_privilege('public', name, 'TEMPORARY')
    OR pg_catalog.has_database_privilege('public', name, 'CREATE')
UNION ALL
SELECT 'REVOKE CREATE ON SCHEMA public FROM PUBLIC' FROM pg_catalog.pg_namespace
WHERE nspname = 'public' AND pg_catalog.has_schema_privilege('public', oid, 'CREATE')
UNION ALL
SELECT 'REVOKE ALL ON SCHEMA quart_tenants FROM PUBLIC'
WHERE pg_catalog.has_schema_privilege('public', 'quart_tenants', 'USAGE')
