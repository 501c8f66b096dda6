"""The store on disk: content by digest within a size cap, and facts about repositories and tags."""
