"""``iresnet classify``: a few images or millions of them."""
