"""What the defence costs attackers: students trained on what the shipped model gives away, and attackers who adapt."""
