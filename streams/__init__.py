"""The top floor: when it happens. Apps, the authorization door, clocks, sockets, the command line."""
