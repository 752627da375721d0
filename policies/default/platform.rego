package touchstone

outcome[name] := {"trust_vector": platform_vector(facts), "reasons": platform_reasons(facts)} if {
	some name, facts in input.checked
	facts.kind == "platform"
}

# Schemes give reasons of their own; a policy adds those that it alone knows.
platform_reasons(facts) := sort(complaints(facts.runtime)) if facts.runtime != null

platform_reasons(facts) := [] if facts.runtime == null

platform_vector(facts) := {
	"instance-identity": instance_identity(facts),
	"configuration": configuration(facts),
}

# instance-identity
#   recognised     2   known, and not known to be compromised
#   untrustworthy  96  known, and not to be trusted
instance_identity(facts) := data.ar4si.instance_identity.recognised if {
	facts.node_state in {"active", "probation"}
	facts.endpoint != "unproven"
} else := data.ar4si.instance_identity.untrustworthy

# configuration
#   approved     2   known and approved
#   vulnerable   32  known vulnerabilities
#   unavailable  36  essential elements not available to the verifier
#   forbidden    96  forbidden settings
configuration(facts) := data.ar4si.configuration.approved if {
	acceptable(facts)
	runtime := facts.runtime
	not weak_version(runtime)
} else := data.ar4si.configuration.vulnerable if {
	acceptable(facts)
} else := data.ar4si.configuration.unavailable if {
	not facts.malformed
	facts.runtime == null
} else := data.ar4si.configuration.forbidden

acceptable(facts) if {
	not facts.malformed
	facts.runtime != null
	facts.class_matches
	not facts.class_doubted
	not exposed(facts)
	count(complaints(facts.runtime) - {"runtime.engine.weak"}) == 0
}

# Whoever reaches the engine's control routes can change what it serves.
exposed(facts) if facts.exposure == "open"

# What there is to say against a running configuration, as reason codes.
complaints(runtime) := {code |
	some code in [
		"runtime.engine.unapproved",
		"runtime.engine.weak",
		"runtime.argument.forbidden",
		"runtime.package.forbidden",
	]
	complaint(runtime, code)
}

complaint(runtime, "runtime.engine.unapproved") if not approved_version(runtime)

complaint(runtime, "runtime.engine.weak") if weak_version(runtime)

complaint(runtime, "runtime.argument.forbidden") if {
	some name, values in data.forbidden_arguments
	runtime.arguments[name] in values
}

complaint(runtime, "runtime.package.forbidden") if {
	some name, versions in data.forbidden_packages
	runtime.packages[name] in versions
}

approved_version(runtime) if runtime.version in data.approved_engines[runtime.engine].versions

weak_version(runtime) if runtime.version in data.approved_engines[runtime.engine].weak
