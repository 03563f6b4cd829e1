"""The pool: which connection a block gets, and who waits for one."""
