"""What the end-to-end tests are made with: real registries, images, clients, and the product as a process."""
