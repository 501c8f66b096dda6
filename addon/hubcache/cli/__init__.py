"""The command line: commands that ask a running cache through its control socket, and that start or check one."""
