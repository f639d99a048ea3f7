"""What is it measured on? Pictures, labels, preprocessing."""
