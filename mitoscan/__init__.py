"""Find mitotic figures in H&E whole-slide images and tell atypical from normal ones."""
