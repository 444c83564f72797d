package node

import "crypto/tls"

// EtcdClientTLS reads the folder that holds a service's certificate for etcd, for tools on the same machine.
func EtcdClientTLS(dir string) (*tls.Config, error) { return etcdClientTLS(dir) }
