"""What tests share: the stand-in for Docker Hub, running programs, clients."""
