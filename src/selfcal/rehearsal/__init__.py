"""What a dry run wants: a model of no use, and a server that makes its replies up.

With them a whole run on one's own data takes minutes on a laptop, and shows whether data, recipe
and machine are in order before a GPU or a token is paid for. What comes out means nothing.
"""
