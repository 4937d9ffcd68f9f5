"""A world of simple solids on a floor: pictures, captions and everything there is to know about them."""
