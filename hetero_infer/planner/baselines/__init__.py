"""What others would have planned, at the same costs and limits: one file for each rule, one answer for each request."""
