"""Messages from one worker to the others: by LISTEN and NOTIFY, on one connection for each worker."""
