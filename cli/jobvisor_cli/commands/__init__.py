"""The commands, one file each; `root.COMMANDS` names them."""
