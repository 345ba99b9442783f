"""What the planners are measured with: data sets, splits and, later, metrics and reports."""
