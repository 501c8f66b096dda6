"""What is kept on disk: content by digest within a size cap, and what is known of repositories and tags."""
