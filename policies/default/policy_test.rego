package touchstone_test

import data.touchstone

engines := {"vllm": {"versions": ["0.11.0", "0.10.2"], "weak": ["0.10.2"]}}

forbidden := {"trust_remote_code": [true]}

platform := {
	"kind": "platform",
	"malformed": false,
	"node_state": "active",
	"endpoint": "proven",
	"class_matches": true,
	"class_doubted": false,
	"runtime": {"engine": "vllm", "version": "0.11.0", "arguments": {}, "packages": {}},
	"capabilities": {},
}

model := {"kind": "model", "manifest": "equal", "read": "right", "walk": "called"}

# Numbers below, not names: a test that read the names too would not see two exchanged.
outcome(name, facts) := result if {
	result := touchstone.outcome[name] with input as {"checked": {name: facts}}
		with data.approved_engines as engines
		with data.forbidden_arguments as forbidden
		with data.forbidden_packages as {"litellm": ["1.82.7"]}
}

platform_with(change) := outcome("platform", object.union(platform, change))

model_with(change) := outcome("model/m", object.union(model, change)).trust_vector

test_good_platform_is_affirming if {
	platform_with({}) == {
		"trust_vector": {"instance-identity": 2, "configuration": 2},
		"reasons": [],
	}
}

test_retired_node_is_not_to_be_trusted if {
	platform_with({"node_state": "retired"}).trust_vector["instance-identity"] == 96
}

test_unproven_endpoint_is_not_to_be_trusted if {
	platform_with({"endpoint": "unproven"}).trust_vector["instance-identity"] == 96
}

test_missing_runtime_is_36 if platform_with({"runtime": null}).trust_vector.configuration == 36

test_malformed_platform_is_96 if {
	platform_with({"runtime": null, "malformed": true}).trust_vector.configuration == 96
}

test_unapproved_version_is_96 if {
	out := platform_with({"runtime": {"version": "9"}})
	out.trust_vector.configuration == 96
	out.reasons == ["runtime.engine.unapproved"]
}

test_another_hardware_class_is_96 if {
	platform_with({"class_matches": false}).trust_vector.configuration == 96
}

test_class_that_walks_contradict_is_96 if {
	platform_with({"class_doubted": true}).trust_vector.configuration == 96
}

test_control_routes_that_can_be_reached_are_96 if {
	platform_with({"exposure": "open"}).trust_vector.configuration == 96
}

test_routes_that_nobody_has_reached_cost_nothing if {
	platform_with({"exposure": "closed"}).trust_vector.configuration == 2
	platform_with({"exposure": "unreached"}).trust_vector.configuration == 2
}

test_weak_version_is_32 if {
	out := platform_with({"runtime": {"version": "0.10.2"}})
	out.trust_vector.configuration == 32
	out.reasons == ["runtime.engine.weak"]
}

test_forbidden_argument_is_96 if {
	out := platform_with({"runtime": {"arguments": {"trust_remote_code": true}}})
	out.trust_vector.configuration == 96
	out.reasons == ["runtime.argument.forbidden"]
}

test_forbidden_package_is_96 if {
	out := platform_with({"runtime": {"packages": {"litellm": "1.82.7"}}})
	out.trust_vector.configuration == 96
	out.reasons == ["runtime.package.forbidden"]
}

test_good_model_is_affirming if model_with({}) == {"file-system": 2, "executables": -2}

test_manifest_alone_is_the_nodes_word if model_with({"read": "unasked"})["file-system"] == -33

test_extra_files_are_a_warning if model_with({"manifest": "extra"})["file-system"] == 32

test_unknown_reference_is_no_conclusion if model_with({"manifest": "unknown"})["file-system"] == 1

test_expired_reference_is_no_conclusion if model_with({"manifest": "expired"})["file-system"] == 1

test_superseded_reference_is_a_warning if {
	model_with({"manifest": "superseded", "read": "superseded", "walk": "superseded"}) == {
		"file-system": -34,
		"executables": -33,
	}
	model_with({"manifest": "superseded", "read": "missing"})["file-system"] == 96
}

test_digests_from_an_old_cache_are_a_warning if {
	model_with({"manifest": "aged"})["file-system"] == -33
	model_with({"manifest": "aged", "read": "unasked"})["file-system"] == -33
	model_with({"manifest": "aged", "read": "wrong"})["file-system"] == 96
}

test_every_other_manifest_is_contraindicated if {
	every manifest in ["differs", "missing", "malformed", "incomparable"] {
		model_with({"manifest": manifest})["file-system"] == 96
	}
}

test_every_other_read_is_contraindicated if {
	every read in ["wrong", "missing", "malformed", "differs"] {
		model_with({"read": read})["file-system"] == 96
	}
}

test_lesser_walks_are_a_warning if {
	every walk in ["announced", "from-file", "late", "shared", "stale", "unanswered", "untimed"] {
		model_with({"walk": walk}).executables == -33
	}
}

test_wrong_and_missed_walks_are_contraindicated if {
	every walk in ["wrong", "unredeemed", "missed"] {
		model_with({"walk": walk}).executables == 96
	}
}

test_no_walk_is_no_claim if not "executables" in object.keys(model_with({"walk": "none"}))

test_unknown_submodule_is_contraindicated if {
	outcome("npu/0", {"kind": "unknown"}).trust_vector == {"configuration": 96}
}

gpu := {"kind": "gpu", "malformed": false, "named": true, "benchmark": "plausible", "memory_fits": true}

hardware_with(change) := outcome("gpu/0", object.union(gpu, change)).trust_vector.hardware

test_declared_device_is_a_warning_at_best if hardware_with({}) == -33

test_boast_is_a_warning if hardware_with({"benchmark": "boast"}) == -34

test_device_of_which_little_is_said_is_no_conclusion if {
	hardware_with({"named": false}) == 0
	hardware_with({"benchmark": "missing"}) == 0
}

test_device_that_its_class_contradicts_is_96 if {
	hardware_with({"benchmark": "implausible"}) == 96
	hardware_with({"memory_fits": false}) == 96
	hardware_with({"malformed": true}) == 96
}

# The verifier has no challenges: what was shown before counts on for a while, and then nobody knows.
test_kept_read_is_2 if {
	model_with({"read": "unasked", "read_exhausted": "kept"})["file-system"] == 2
}

test_lost_read_is_0 if {
	model_with({"read": "unasked", "read_exhausted": "lost"})["file-system"] == 0
}

test_kept_read_does_not_excuse_other_files if {
	model_with({"manifest": "differs", "read": "unasked", "read_exhausted": "kept"})["file-system"] == 96
	model_with({"manifest": "extra", "read": "unasked", "read_exhausted": "kept"})["file-system"] == 32
	model_with({"manifest": "aged", "read": "unasked", "read_exhausted": "kept"})["file-system"] == -33
	model_with({"manifest": "differs", "read": "unasked", "read_exhausted": "lost"})["file-system"] == 96
}

test_wrong_read_is_96_whatever_the_pool_has if {
	model_with({"read": "wrong", "read_exhausted": "lost"})["file-system"] == 96
}

test_lost_walk_is_0 if {
	every walk in ["announced", "stale"] {
		model_with({"walk": walk, "walk_exhausted": "lost"}).executables == 0
	}
}

test_lost_walk_excuses_nothing_else if {
	every walk in ["from-file", "late", "shared", "untimed"] {
		model_with({"walk": walk, "walk_exhausted": "lost"}).executables == -33
	}
	every walk in ["missed", "unredeemed", "wrong"] {
		model_with({"walk": walk, "walk_exhausted": "lost"}).executables == 96
	}
}
