"""All methods compared on one model: every clip dense once and by every method, measured and put into one table."""
