package touchstone

platform_vector(facts) := {
	"instance-identity": instance_identity(facts),
	"configuration": configuration(facts),
}

# instance-identity
#   2   recognised, not known to be compromised
#   96  recognised, and not to be trusted
default instance_identity(_) := 96

instance_identity(facts) := 2 if {
	facts.node_state in {"active", "probation"}
	facts.endpoint != "unproven"
}

# configuration
#   2   known and approved
#   32  known vulnerabilities
#   36  essential elements not available to the verifier
#   96  forbidden settings
default configuration(_) := 96

configuration(facts) := 36 if {
	not facts.malformed
	facts.runtime == null
}

configuration(facts) := 32 if {
	acceptable(facts)
	weak_version(facts.runtime)
}

configuration(facts) := 2 if {
	acceptable(facts)
	not weak_version(facts.runtime)
}

acceptable(facts) if {
	not facts.malformed
	facts.runtime != null
	facts.class_matches
	not facts.class_doubted
	approved_version(facts.runtime)
	count(forbidden_arguments(facts.runtime)) == 0
	count(forbidden_packages(facts.runtime)) == 0
}

approved_version(runtime) if runtime.version in data.approved_engines[runtime.engine].versions

weak_version(runtime) if runtime.version in data.approved_engines[runtime.engine].weak

forbidden_arguments(runtime) := {name |
	some name, values in data.forbidden_arguments
	runtime.arguments[name] in values
}

forbidden_packages(runtime) := {name |
	some name, versions in data.forbidden_packages
	runtime.packages[name] in versions
}

platform_reasons(facts) := {code | some code in platform_codes(facts)}

platform_codes(facts) := [] if facts.runtime == null

platform_codes(facts) := array.concat(
	[code | not approved_version(facts.runtime); code := "runtime.engine.unapproved"],
	array.concat(
		[code | weak_version(facts.runtime); code := "runtime.engine.weak"],
		array.concat(
			[code | count(forbidden_arguments(facts.runtime)) > 0; code := "runtime.argument.forbidden"],
			[code | count(forbidden_packages(facts.runtime)) > 0; code := "runtime.package.forbidden"],
		),
	),
) if {
	facts.runtime != null
}
