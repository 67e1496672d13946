"""What a plan costs: seconds of a layer, bytes of a stage, bytes on a link, seconds of a schedule. No torch here."""
