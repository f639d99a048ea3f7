"""What does a person see? The report and its figures."""
