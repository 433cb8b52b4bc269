"""Files of weights, and modules made from them."""
