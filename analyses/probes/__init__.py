"""What classifiers read from an array about speakers that they have not heard."""
