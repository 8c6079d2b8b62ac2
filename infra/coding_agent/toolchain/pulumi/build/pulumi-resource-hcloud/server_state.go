package main

import (
	"slices"
	"strconv"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// attributes returns what the cloud says of a server as a state has it. What the cloud does not say stays as it is:
// user data, keys, and the data center, which it has stopped to name.
func attributes(d *schema.ResourceData, found *hcloud.Server) map[string]any {
	values := map[string]any{
		"name":               found.Name,
		"labels":             found.Labels,
		"status":             string(found.Status),
		"server_type":        found.ServerType.Name,
		"backups":            found.BackupWindow != "",
		"backup_window":      found.BackupWindow,
		"delete_protection":  found.Protection.Delete,
		"rebuild_protection": found.Protection.Rebuild,
		"primary_disk_size":  found.PrimaryDiskSize,
		"firewall_ids":       firewallsOf(found),
		"ipv4_address":       "",
		"ipv6_address":       "",
		"ipv6_network":       "",
		"datacenter":         d.Get("datacenter"),
	}
	if !found.PublicNet.IPv4.IsUnspecified() {
		values["ipv4_address"] = found.PublicNet.IPv4.IP.String()
	}
	if network := found.PublicNet.IPv6.Network; network != nil {
		// A server has the first address of its network.
		first := slices.Clone(network.IP.To16())
		first[len(first)-1]++
		values["ipv6_address"], values["ipv6_network"] = first.String(), network.String()
	}
	if found.Location != nil {
		values["location"] = found.Location.Name
	}
	if image := found.Image; image != nil {
		values["image"] = imageAs(image, d.Get("image").(string))
	}
	group := 0
	if found.PlacementGroup != nil {
		group = int(found.PlacementGroup.ID)
	}
	values["placement_group_id"] = group
	// Networks may also be joined by resources of their own: those are not this one's.
	if _, asked := d.GetOk("network"); asked {
		values["network"] = asNetworkSet(found, d)
	}
	return values
}

// imageAs returns an image by its name, or by its number where it has none or was ordered so.
func imageAs(image *hcloud.Image, ordered string) string {
	id := strconv.FormatInt(image.ID, 10)
	if image.Name == "" || ordered == id {
		return id
	}
	return image.Name
}

func firewallsOf(found *hcloud.Server) []int {
	ids := make([]int, 0, len(found.PublicNet.Firewalls))
	for _, status := range found.PublicNet.Firewalls {
		ids = append(ids, int(status.Firewall.ID))
	}
	return ids
}
