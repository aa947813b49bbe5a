"""The schema: migrations, requirements, role settings and partitions."""
