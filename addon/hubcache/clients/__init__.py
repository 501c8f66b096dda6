"""Who may connect, how many connections there are, and where they may lead."""
