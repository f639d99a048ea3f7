"""Does it run, and agree? Build, library, verification, benchmark."""
