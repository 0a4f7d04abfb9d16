"""Models: their cards, where they are found, their networks and the runtimes that execute them."""
