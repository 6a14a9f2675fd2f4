"""What the defence costs a thief: students trained on what the shipped model gives away, and attackers who adapt."""
