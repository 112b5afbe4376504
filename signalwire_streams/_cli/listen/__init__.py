"""``signalwire-streams listen``: a receiver that writes down what it hears."""
