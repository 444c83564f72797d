package fence

import (
	"context"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Listed is a member as etcd shows it.
type Listed struct {
	Service, Instance string
	Class             Class
	// Place is that of the member's store or rows.
	Place string
	// Applied is the revision that it has published, Head that of the last change.
	Applied, Head int64
	// Lease is how long its key still stands without a renewal, whole seconds; negative where the key is gone and only its mark is left.
	Lease time.Duration
}

// List reads the members below a prefix (DefaultPrefix when empty), with etcd's quorum, for operators.
func List(ctx context.Context, c *clientv3.Client, prefix string) ([]Listed, error) {
	if prefix = strings.Trim(prefix, "/"); prefix == "" {
		prefix = DefaultPrefix
	}
	f := &Fence{cfg: Config{Client: c, Prefix: prefix}}
	txn, err := c.Txn(ctx).Then(clientv3.OpGet(f.instPrefix(), clientv3.WithPrefix()), clientv3.OpGet(f.markPrefix(), clientv3.WithPrefix()), clientv3.OpGet(f.logKey(headName))).Commit()
	if err != nil {
		return nil, err
	}
	var head int64
	if kvs := txn.Responses[2].GetResponseRange().GetKvs(); len(kvs) > 0 {
		head = kvs[0].ModRevision
	}
	var out []Listed
	live := make(map[string]bool)
	for _, kv := range txn.Responses[0].GetResponseRange().GetKvs() {
		live[string(kv.Key)] = true
		in := parse(kv)
		l := Listed{Service: in.Service, Instance: in.Instance, Class: in.Class, Place: in.Place, Applied: in.Applied, Head: head, Lease: -1}
		if left, err := c.TimeToLive(ctx, clientv3.LeaseID(kv.Lease)); err == nil && left.TTL > 0 {
			l.Lease = time.Duration(left.TTL) * time.Second
		}
		out = append(out, l)
	}
	for _, kv := range txn.Responses[1].GetResponseRange().GetKvs() {
		if in := parse(kv); !live[f.keyOf(string(kv.Key))] {
			out = append(out, Listed{Service: in.Service, Instance: in.Instance, Class: in.Class, Place: in.Place, Applied: in.Applied, Head: head, Lease: -1})
		}
	}
	slices.SortFunc(out, func(a, b Listed) int { return strings.Compare(a.Service+"/"+a.Instance, b.Service+"/"+b.Instance) })
	return out, nil
}
