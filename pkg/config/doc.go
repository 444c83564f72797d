// Package config owns how a process learns its settings: one strict YAML file, REDOUBT_* variables over it, flags over
// those. The sections are structs of their owners; this package knows none of them.
//
// A field is named by `koanf:"name"` and tagged `config:"visible"` or `config:"sensitive"`, without which Load refuses
// the type: so nobody forgets to decide what Dump may show. A field of type redact.Secret has a name that ends in
// _file and is given as a path: the secret itself never stands in the file, in a variable or in a flag.
//
//	type Config struct {
//		Listen  netip.AddrPort `koanf:"listen" config:"visible"`
//		Timeout time.Duration  `koanf:"timeout" config:"visible"`
//		Limit   config.Size    `koanf:"limit" config:"visible"`
//		Pepper  redact.Secret  `koanf:"pepper_file" config:"sensitive"`
//	}
//
// Trust boundary: who may write the file, or set the environment, is the operator. The file may not be writable by
// everybody, and a secret's file may be readable by its owner alone, who is this process's user or root.
//
// Invariants: a key that no field has is an error that names file, line and path, and so is a variable REDOUBT_X_…
// whose X is a section; a value has the type of its field, nothing is converted silently; a list or map replaces the
// default's whole; the defaults that were passed in are not changed; no error repeats the value of a sensitive field.
//
// Failure: Load returns all that it found wrong at once, and then no configuration.
package config
