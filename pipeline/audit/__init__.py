"""What a night's run says: findings of fixed rules on its sums, the comparison with an earlier run, and the report."""
