"""The command line, over the public names only. It needs the extra ``cli``, and nothing else imports it."""
