"""What an entry carries besides its content, one module for each kind of operating system."""
