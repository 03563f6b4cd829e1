-- sql/demo/company2.sql: the user and the row that the seed gives company 2. The password is foo.
INSERT INTO app_user (username, password)
VALUES ('user_2', '$pbkdf2-sha256$29000$5ry31vofg7CWkhJCSClFKA$i01NZ9cAJCAYlXQCY2AXmcmJfe8eD5vZMDOy0h8tH2U');
INSERT INTO company_data (description) VALUES ('company 2 data');
