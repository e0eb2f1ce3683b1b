"""What each word of the command line does. One module for words that share their imports."""
