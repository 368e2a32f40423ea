"""What the server does with the mean update; one file each."""
