"""Units, prices, selection, surgery, the pruned model and mask files."""
