"""The command line of jobvisor: the only place that imports click and rich."""
