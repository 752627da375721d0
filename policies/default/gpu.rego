package touchstone

# hardware
#   0    no conclusion: the device is not named, or no benchmark was run
#   -33  declared, and measured work does not speak against it
#   -34  declared, and far above what was verified
#   96   contradicted by its class
default hardware(_) := 96

hardware(facts) := 0 if {
	not contradicted(facts)
	unsaid(facts)
}

hardware(facts) := -33 if {
	not contradicted(facts)
	not unsaid(facts)
	facts.benchmark == "plausible"
}

hardware(facts) := -34 if {
	not contradicted(facts)
	not unsaid(facts)
	facts.benchmark == "boast"
}

unsaid(facts) if not facts.named

unsaid(facts) if facts.benchmark == "missing"

contradicted(facts) if facts.malformed

contradicted(facts) if facts.benchmark == "implausible"

contradicted(facts) if not facts.memory_fits
