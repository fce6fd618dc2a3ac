"""A float graph on its way to the deployed form: export, passes, and the check behind each."""
