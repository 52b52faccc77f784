"""What runs in fresh processes: each module is a program that gets its parameters as JSON."""
