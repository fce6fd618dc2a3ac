"""The networks: their architecture, the table of models, weights and labels."""
