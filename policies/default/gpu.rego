package touchstone

outcome[name] := {"trust_vector": {"hardware": hardware(facts)}, "reasons": []} if {
	some name, facts in input.checked
	facts.kind == "gpu"
}

# hardware
#   no_conclusion  0    the device is not named, or no benchmark was run
#   declared       -33  declared, and measured work does not speak against it
#   boast          -34  declared, and far above what was verified
#   contradicted   96   contradicted by its class
hardware(facts) := data.ar4si.hardware.no_conclusion if {
	consistent(facts)
	unsaid(facts)
} else := data.ar4si.hardware.declared if {
	consistent(facts)
	facts.benchmark == "plausible"
} else := data.ar4si.hardware.boast if {
	consistent(facts)
	facts.benchmark == "boast"
} else := data.ar4si.hardware.contradicted

consistent(facts) if {
	not facts.malformed
	facts.benchmark != "implausible"
	facts.memory_fits
}

unsaid(facts) if not facts.named

unsaid(facts) if facts.benchmark == "missing"
