"""What the user of the running cache can ask of it: commands, and the Unix socket that receives them."""
