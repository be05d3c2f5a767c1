"""The criteria that come with polyprune: one module, one plugin, registered through entry points like any other."""
