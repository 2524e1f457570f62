"""What data flows through; knows no paper."""
