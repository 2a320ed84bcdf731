"""What checks types while the tests run: beartype, with an int being good enough for a float, as for mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
